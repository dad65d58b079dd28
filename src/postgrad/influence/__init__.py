"""Which training data made the model say this."""
