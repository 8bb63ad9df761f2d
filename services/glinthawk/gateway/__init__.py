"""The gateway: requests in, tokens through the tiers, answers out. No torch."""
