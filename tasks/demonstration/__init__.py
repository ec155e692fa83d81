"""The page of `make demo`: trained models in the browser."""
