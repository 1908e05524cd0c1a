"""Publishing on the Hub: what may be sent, how it is checked, its card, and how it is sent."""
