"""How buffers of slots grow."""

#: Capacities are multiples of this many slots.
GRANULE = 256


def grown_capacity(slots: int, capacity: int) -> int:
    """The capacity of a buffer that must hold `slots` and holds `capacity`: half more at least.

    So n appends copy O(n) slots in all.
    """
    wanted = max(slots, capacity + capacity // 2)
    return wanted + -wanted % GRANULE
