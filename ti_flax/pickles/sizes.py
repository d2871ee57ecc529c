"""How large the sizes in a file may be."""

_MAX_SIZE = 2**40
_MAX_DIMENSIONS = 8


def is_size(number: object) -> bool:
    """Whether this is a whole number that a length, offset or stride may be."""
    return type(number) is int and 0 <= number < _MAX_SIZE


def is_shape(sizes: object) -> bool:
    """Whether this is a tuple of few sizes, whose product is cheap."""
    return (
        type(sizes) is tuple
        and len(sizes) <= _MAX_DIMENSIONS
        and all(map(is_size, sizes))
    )
