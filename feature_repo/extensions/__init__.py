"""Feast extensions: classes that `feature_store.yaml` names, on Feast's own interfaces.

    offline.AsofOfflineStore    training frames by ASOF joins (DuckDB)
    spark.SparkOfflineStore     the same frames from Spark (GYRE_ENGINE=spark)
    online.NewestOnlineStore    Redis writes that only a newer row can refuse
    registry.GuardedRegistryStore  a registry that keeps what versions are served
    engine.ArrowComputeEngine   materialisation without a Python object per value

Each is a subclass of the stock class and falls back to it where it has nothing better to offer.
"""
