"""Export of a trained model: its graph, its weights, its model card and its upload."""
