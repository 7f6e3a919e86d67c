"""JEPA world models: encode what you see, predict the latent of what you do not see, score the prediction."""

__version__ = "0.1.0"
