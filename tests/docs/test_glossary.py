"""The glossary's table of code names, and the links of the architecture, against the tree."""

import ast
import re

import pytest

from core.project import CLONE

GLOSSARY = (CLONE / "docs" / "glossary.md").read_text()
ROW = re.compile(r"^\| (`[A-Z].*`) \| .* \| `([a-z_.]+)` \|$", re.MULTILINE)
NAMES = {
    name: module
    for names, module in ROW.findall(GLOSSARY)
    for name in re.findall(r"`(\w+)`", names)
}


def test_the_table_of_code_names_is_read():
    assert len(NAMES) > 25


@pytest.mark.parametrize("name", NAMES)
def test_a_code_name_of_the_glossary_exists(name):
    path = CLONE.joinpath(*NAMES[name].split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    statements = ast.parse(file.read_text()).body
    names = {part.name for part in statements if isinstance(part, ast.ClassDef)}
    aliases = [part for part in statements if isinstance(part, ast.Assign)]
    names |= {ast.unparse(alias.targets[0]) for alias in aliases}
    assert name in names, file


@pytest.mark.parametrize("page", ["architecture.md", "tests.md", "glossary.md"])
def test_a_link_into_the_tree_leads_to_a_file(page):
    text = (CLONE / "docs" / page).read_text()
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [name for name in targets if not (CLONE / "docs" / name).exists()]
    assert missing == []


def test_every_folder_of_the_product_is_in_the_tree_of_the_architecture():
    text = (CLONE / "docs" / "architecture.md").read_text()
    block = text.partition("```\n")[2].partition("```")[0]
    listed_folders = set()
    root = ""
    for line in block.splitlines():
        name = line.split("/ ")[0].strip()
        if line.startswith("  "):
            listed_folders.add(f"{root}/{name}")
        elif name:
            root = name
            listed_folders.add(root)
    folders = set()
    for package in CLONE.glob("*/__init__.py"):
        for file in package.parent.rglob("*.py"):
            folder = file.parent.relative_to(CLONE).as_posix()
            if "templates" not in folder and "plugins" not in folder:
                folders.add(folder)
    folders |= {"feature_repo/expectations"}
    assert listed_folders == folders - {"gyre"}
