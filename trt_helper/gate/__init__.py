"""Judge a config in CI: its plan on the model as it is now, against its tolerance and its baseline."""
