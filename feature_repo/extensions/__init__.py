"""Feast extensions that `feature_store.yaml` names: subclasses of the stock classes."""
