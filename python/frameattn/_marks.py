"""Pages of which a part is made by a program."""


def put_between(page: str, begin: str, end: str, text: str) -> str:
    """The page with the text between two marks, in the place of what is there.

    Raises:
        ValueError: the page does not have them, in this order.
    """
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"there is no {begin} with {end} behind it")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
