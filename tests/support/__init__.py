"""Models, inputs and helpers that several tests share."""
