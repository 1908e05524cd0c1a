"""What must not be trained: bypass data, secrets, personal data, control tokens of the model."""
