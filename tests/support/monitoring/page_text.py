"""The HTML of a page without the lines of its template, and its text."""

import re

BLOCKS = (
    "article|body|caption|dd|details|div|dl|dt|figcaption|figure|footer|form|h[1-6]|head|header|html|iframe"
    "|label|li|link|main|meta|nav|ol|option|p|rect|script|section|select|summary|svg|t[dhr]|table|tbody"
    "|tfoot|thead|title|ul"
)


def one_line(html):
    """A page as it is seen: no white space beside a block, elsewhere one space."""
    text = re.sub(r"\s+", " ", html)
    return re.sub(rf" ?(</?(?:{BLOCKS})\b[^>]*>) ?", r"\1", text)


def plain(html):
    """The text of a page, without tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())
