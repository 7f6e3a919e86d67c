"""Scripts over the library. Nothing in ``jepa`` imports them."""
