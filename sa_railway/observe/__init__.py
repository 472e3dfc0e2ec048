"""What an operator sees: metrics, health, and the endpoints that show them."""
