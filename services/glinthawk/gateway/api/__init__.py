"""What callers may ask, and how much, whichever door they come through: HTTP or gRPC."""
