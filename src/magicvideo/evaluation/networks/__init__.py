"""Feature networks, loaded from given paths and never downloaded automatically."""
