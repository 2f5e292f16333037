"""What the gate found, as the places where CI looks want it: JUnit, SARIF, Markdown, annotations, a table, JSON."""
