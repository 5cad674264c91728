"""Text of alerts for a service that takes signs of it for mentions or markup.

A value of a row may say `@everyone`, `<!channel>` or `[link](http://…)`. A service shows it as text.
"""

import re
from typing import Any

PLAIN = frozenset(
    {
        "azure",
        "brevo",
        "form",
        "forms",
        "groundmail",
        "json",
        "jsons",
        "mailersend",
        "mailgun",
        "mailto",
        "mailtos",
        "o365",
        "postmark",
        "resend",
        "sendgrid",
        "sendpulse",
        "ses",
        "smtp2go",
        "sparkpost",
        "xml",
        "xmls",
    }
)
"""Apprise's schemes of mails and webhooks, in which nobody is mentioned. Apprise escapes HTML."""
WITH_MARKDOWN = frozenset(
    {
        "discord",
        "fluxer",
        "fluxers",
        "guilded",
        "humhub",
        "humhubs",
        "mmost",
        "mmosts",
        "nctalk",
        "nctalks",
        "notifiarr",
        "revolt",
        "ryver",
    }
)
"""Schemes of services that show Markdown also in what Apprise sends as text, and know backslashes."""
BREAK = "\u200b"
"""Zero-width space: nobody sees it, and a mention, a tag or a link ends at it."""
BEGINNINGS = re.compile(r"@|<|\](?=\()")
"""Signs that begin a mention or a tag, and the middle of a link."""
MARKDOWN_SIGNS = re.compile(r"[\\`*_~|\[\]()#>]")
"""Signs of Markdown that Discord, Mattermost and CommonMark let a backslash escape."""


def text_for(service: Any, text: str) -> str:
    """Return a text for a service, which shows each sign of it as it is and mentions nobody.

    Args:
        service: A service of Apprise, which gets texts as plain text.
        text: The text.

    """
    schemes = service.schemas()
    if not schemes.isdisjoint(PLAIN):
        return text
    broken_text = BEGINNINGS.sub(rf"\g<0>{BREAK}", text)
    # Apprise escapes Markdown itself where it sends it.
    is_text = service.resolve_format("text") == "text"
    if is_text and not schemes.isdisjoint(WITH_MARKDOWN):
        return MARKDOWN_SIGNS.sub(r"\\\g<0>", broken_text)
    return broken_text
