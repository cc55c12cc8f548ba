"""From messages to the text that a model was trained to read. Knows no torch and no engine."""
