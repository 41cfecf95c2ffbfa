"""HTML from Python: everything is escaped that is not Html already."""

from html import escape

VOID = ("img", "meta", "link")


class Html(str):
    """Text that is HTML."""


def tag(name: str, /, *content: object, **attributes: str | bool) -> Html:
    """An element. Attributes: `class_` is class, `data_sort` data-sort; True has no value, False is left out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not False)
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(content)}</{name}>")


def _attribute(key: str, value: str | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def joined(content: object, between: str = "") -> Html:
    """Texts, Html and lists of these, one after another."""
    if isinstance(content, (list, tuple)):
        return Html(between.join(joined(item) for item in content))
    return content if isinstance(content, Html) else Html(escape(str(content), quote=False))
