"""Encoders, targets, predictors and the world model that joins them."""
