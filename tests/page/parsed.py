"""A page as html.parser reads it: a tree of elements, whose nesting is checked."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"img", "meta", "link", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict
    inside: list = field(default_factory=list)  # texts and Elements

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.inside)

    def every(self, *tags, **attributes):
        """Elements below with one of these tags, and attributes of these values (`class_` is class)."""
        for part in self.inside:
            if isinstance(part, str):
                continue
            if (not tags or part.tag in tags) and all(
                part.attributes.get(name.rstrip("_").replace("_", "-")) == value for name, value in attributes.items()
            ):
                yield part
            yield from part.every(*tags, **attributes)

    def rows(self):
        """Of a table: the texts of its cells, row by row, headers first."""
        return [[cell.text for cell in row.every("th", "td")] for row in self.every("tr")]


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice: {tag} {attributes}"
        element = Element(tag, dict(attributes))
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, text):
        self.open[-1].inside.append(text)


def parse(path):
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == [parser.root]
    return parser.root
