"""Models on their way to others: baked, exported, on the Hub, in other libraries."""
