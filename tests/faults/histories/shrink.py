"""Makes a history that fails shorter, as long as it fails in the same way."""


def shrink(steps, fails, tries=40):
    """Leave out steps that a failure does not need.

    Args:
        steps: Steps of a history that fails.
        fails: Plays steps; returns whether they fail in the same way.
        tries: How often `fails` may be called.

    Returns:
        The steps that are left, of which none can go where the tries sufficed.

    """
    size = len(steps) // 2
    while size and tries:
        start = 0
        while start < len(steps) and tries:
            fewer_steps = [*steps[:start], *steps[start + size :]]
            tries -= 1
            if fewer_steps and fails(fewer_steps):
                steps = fewer_steps
            else:
                start += size
        size //= 2
    return steps
