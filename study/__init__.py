"""What is compared: studies of regularizers over seeds, and searches for their parameters."""
