"""Use of a trained model: predictions for inputs from outside of the data set."""
