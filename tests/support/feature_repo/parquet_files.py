"""Feast's own store of files (dask) and ours, over the same parquet files."""

from tests.support.feature_engine.both_stores import OURS, open_store


def stores_of(folder, objects):
    """Return Feast's own store and ours, with the same objects."""
    return (
        open_store(folder, objects, type="dask"),
        open_store(folder, objects, type=OURS, cache=f"{folder}/cache"),
    )


def pull(store, view_name, rows_of_a_key, begin, end):
    """Return rows of a view's source, as Feast pulls them to materialise the view.

    Args:
        store: Feast's store.
        view_name: Name of the view.
        rows_of_a_key: Which rows: latest, or all.
        begin: Earliest event time.
        end: Latest event time.

    """
    view = store.get_feature_view(view_name)
    source = view.batch_source
    old_names = {new: old for old, new in source.field_mapping.items()}
    names = [feature.name for feature in view.features]
    offline_store = store.provider.offline_store
    job = getattr(offline_store, f"pull_{rows_of_a_key}_from_table_or_query")(
        config=store.config,
        data_source=source,
        join_key_columns=view.join_keys,
        feature_name_columns=[old_names.get(name, name) for name in names],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or None,
        start_date=begin,
        end_date=end,
    )
    return job.to_arrow()
