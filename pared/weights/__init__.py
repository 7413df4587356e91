"""Files of weights, without the model that they belong to: numpy alone, and never torch."""
