"""Numbers of things as they are read."""


def counted(count: int, thing: str, things: str = "") -> str:
    """As "1 image" or "2,000 images"; `things` where the plural is another than with an s."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"
