"""Run work again when it failed for a reason that passes, and know when not to."""
