"""Token reduction: slots, the matchers that choose them, and the schedule that says how much.

`schedule` imports no torch, so the service can use it; import the other modules by name.
"""
