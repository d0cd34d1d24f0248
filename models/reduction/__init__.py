"""Token reductions: slots, and the matchers that choose them, one per module."""
