"""A catalog of Apache Iceberg in an SQLite file, as pyiceberg's own environment describes one."""

import importlib

import pyiceberg.catalog


def use_catalog(monkeypatch, name, folder, warehouse=None, **properties):
    """Have a catalog in this process and those that it starts; return it.

    Args:
        monkeypatch: Sets the variables.
        name: Of the catalog.
        folder: Of its database and, by default, of its tables.
        warehouse: Address of the tables' folder.
        properties: More variables of it.

    """
    (folder / "warehouse").mkdir(exist_ok=True)
    properties |= {
        "TYPE": "sql",
        "URI": f"sqlite:///{folder}/catalog.db",
        "WAREHOUSE": warehouse or f"file://{folder}/warehouse",
    }
    for key, value in properties.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__{name.upper()}__{key}", value)
    importlib.reload(
        pyiceberg.catalog
    )  # it has read the variables when it was imported
    catalog = pyiceberg.catalog.load_catalog(name)
    catalog.create_namespace_if_not_exists("shop")
    return catalog
