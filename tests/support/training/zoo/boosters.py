"""XGBoost's and LightGBM's models, by their own functions and by scikit-learn's interface."""

import lightgbm
import numpy as np
import skops.io
import xgboost

from tests.support.training.zoo.members import (
    MAKERS,
    NUMBERS,
    TRAIN,
    Member,
    amount,
    member,
    numbers,
    outcome,
)
from tests.support.training.zoo.scikit import (
    large_integers,
    readings,
    seconds,
    small_types,
    text_names,
    with_flag,
    with_nulls,
)

QUIET = {"verbose": -1, "num_threads": 1}
VALIDATION = slice(TRAIN, TRAIN + 500)
CLASSES = ("0", "1", "2")


def nulls():
    return with_nulls(numbers())


def labels_of(frame, task, y=None):
    filled = frame.assign(**frame[NUMBERS].fillna(0))
    if task == "regression":
        return amount(filled)
    labels = outcome(filled, 3 if task == "multiclass" else 2)
    return labels if y is None else y(labels)


def scores_of(model, frame, task):
    if task == "regression":
        return model.predict(frame)
    scores = model.predict_proba(frame)
    return scores if task == "multiclass" else scores[:, 1]


def fitted(
    name, flavor, make_model, rows, *, task="classification", y=None, fit=None, **more
):
    """Add a model of scikit-learn's interface."""

    def make():
        frame = rows()
        labels = labels_of(frame, task, y)
        model = make_model()
        options = fit(frame, labels) if fit else {}
        model.fit(frame[:TRAIN], labels[:TRAIN], **options)
        save_options = {}
        if flavor == "mlflow.lightgbm":  # by default
            types = skops.io.get_untrusted_types(data=skops.io.dumps(model))
            save_options = {"skops_trusted_types": types}
        scores = scores_of(model, frame, task)
        return Member(name, task, flavor, model, frame, scores, save_options, **more)

    MAKERS[name] = make


def xgb(name, make_model, rows, **more):
    fitted(name, "mlflow.xgboost", make_model, rows, **more)


def lgb(name, make_model, rows, **more):
    fitted(name, "mlflow.lightgbm", make_model, rows, **more)


def validated(frame, labels):
    return {"eval_set": [(frame[VALIDATION], labels[VALIDATION])], "verbose": False}


def lgb_validated(frame, labels):
    stop = lightgbm.early_stopping(3, verbose=False)
    return {"eval_set": [(frame[VALIDATION], labels[VALIDATION])], "callbacks": [stop]}


xgb("xgb", lambda: xgboost.XGBClassifier(n_estimators=30), nulls)
xgb(
    "xgb_stopped",
    lambda: xgboost.XGBClassifier(n_estimators=300, early_stopping_rounds=3),
    numbers, fit=validated,
)  # fmt: skip
xgb("xgb_base", lambda: xgboost.XGBClassifier(n_estimators=5, base_score=0.9), numbers)
xgb(
    "xgb_three", lambda: xgboost.XGBClassifier(n_estimators=10), numbers, task="multiclass",
    classes=CLASSES,
)  # fmt: skip
xgb(
    "xgb_regression",
    lambda: xgboost.XGBRegressor(n_estimators=20),
    readings,
    task="regression",
)
xgb(
    "xgb_seconds",
    lambda: xgboost.XGBRegressor(n_estimators=20),
    seconds,
    task="regression",
)
xgb(
    "xgb_linear",
    lambda: xgboost.XGBClassifier(booster="gblinear", n_estimators=20),
    numbers,
)
xgb(
    "xgb_dart", lambda: xgboost.XGBClassifier(booster="dart", rate_drop=0.3, n_estimators=20),
    numbers,
)  # fmt: skip
xgb("xgb_forest", lambda: xgboost.XGBRFClassifier(n_estimators=20), numbers)
xgb("xgb_flags", lambda: xgboost.XGBClassifier(n_estimators=10), with_flag)
xgb("xgb_small", lambda: xgboost.XGBClassifier(n_estimators=10), small_types)
xgb(
    "xgb_poisson", lambda: xgboost.XGBRegressor(objective="count:poisson", n_estimators=20),
    numbers, task="regression",
)  # fmt: skip
lgb("lgb", lambda: lightgbm.LGBMClassifier(n_estimators=30, verbose=-1), nulls)
lgb(
    "lgb_stopped", lambda: lightgbm.LGBMClassifier(n_estimators=300, verbose=-1), numbers,
    fit=lgb_validated,
)  # fmt: skip
lgb(
    "lgb_three", lambda: lightgbm.LGBMClassifier(n_estimators=10, verbose=-1), numbers,
    task="multiclass", classes=CLASSES,
)  # fmt: skip
lgb(
    "lgb_names", lambda: lightgbm.LGBMClassifier(n_estimators=10, verbose=-1), numbers,
    task="multiclass", y=text_names, classes=("early", "late", "never"),
)  # fmt: skip
lgb(
    "lgb_regression", lambda: lightgbm.LGBMRegressor(n_estimators=20, verbose=-1), readings,
    task="regression",
)  # fmt: skip
lgb(
    "lgb_integers",
    lambda: lightgbm.LGBMClassifier(n_estimators=20, verbose=-1),
    large_integers,
)
lgb(
    "lgb_flags", lambda: lightgbm.LGBMClassifier(n_estimators=10, verbose=-1), with_flag
)


def xgb_trained(
    name, parameters, rows=numbers, *, task="classification", rounds=20, **more
):
    """Add a Booster of `xgboost.train`."""

    def make():
        frame = rows()
        labels = labels_of(frame, task)
        train = xgboost.DMatrix(frame[:TRAIN], labels[:TRAIN])
        options = {}
        if rounds > 100:
            validation = xgboost.DMatrix(frame[VALIDATION], labels[VALIDATION])
            options = {"evals": [(validation, "v")], "early_stopping_rounds": 3}
        model = xgboost.train(parameters, train, rounds, verbose_eval=False, **options)
        scores = model.predict(xgboost.DMatrix(frame))
        return Member(name, task, "mlflow.xgboost", model, frame, scores, **more)

    MAKERS[name] = make


LOGISTIC = {"objective": "binary:logistic"}
xgb_trained("xgb_booster", LOGISTIC)
xgb_trained("xgb_booster_stopped", LOGISTIC, rounds=300)
xgb_trained(
    "xgb_softprob", {"objective": "multi:softprob", "num_class": 3}, task="multiclass",
    classes=CLASSES,
)  # fmt: skip
xgb_trained(
    "xgb_softmax", {"objective": "multi:softmax", "num_class": 3}, task="multiclass",
    classes=CLASSES, refusal="probabilities",
)  # fmt: skip
xgb_trained("xgb_hinge", {"objective": "binary:hinge"}, refusal="probabilities")
xgb_trained("xgb_logits", {"objective": "binary:logitraw"}, refusal="probabilities")
xgb_trained("xgb_rank", {"objective": "rank:pairwise"}, refusal="probabilities")
xgb_trained("xgb_square", {"objective": "reg:squarederror"}, refusal="probabilities")
xgb_trained(
    "xgb_number", {"objective": "reg:squarederror"}, readings, task="regression"
)


def lgb_trained(
    name, parameters, rows=numbers, *, task="classification", rounds=20, **more
):
    """Add a Booster of `lightgbm.train`."""

    def make():
        frame = rows()
        labels = labels_of(frame, task)
        train = lightgbm.Dataset(frame[:TRAIN], labels[:TRAIN])
        options = {}
        if rounds > 100:
            validation = lightgbm.Dataset(frame[VALIDATION], labels[VALIDATION])
            stop = lightgbm.early_stopping(3, verbose=False)
            options = {"valid_sets": [validation], "callbacks": [stop]}
        model = lightgbm.train({**QUIET, **parameters}, train, rounds, **options)
        scores = model.predict(frame)
        return Member(name, task, "mlflow.lightgbm", model, frame, scores, **more)

    MAKERS[name] = make


lgb_trained("lgb_booster", {"objective": "binary"})
lgb_trained("lgb_booster_stopped", {"objective": "binary"}, rounds=300)
lgb_trained(
    "lgb_multiclass", {"objective": "multiclass", "num_class": 3}, task="multiclass",
    classes=CLASSES,
)  # fmt: skip
lgb_trained("lgb_number", {"objective": "regression"}, readings, task="regression")
lgb_trained("lgb_entropy", {"objective": "cross_entropy"})
lgb_trained("lgb_square", {"objective": "regression"}, refusal="probabilities")


@member
def lgb_categories():
    """Text as categories, which LightGBM keeps in the model."""
    frame = numbers()
    cities = np.random.default_rng(3).choice(["Aachen", "Bonn", "Cologne"], len(frame))
    frame = frame.assign(city=cities)
    known = frame.astype({"city": "category"})
    train = lightgbm.Dataset(known[:TRAIN], outcome(frame)[:TRAIN])
    model = lightgbm.train({**QUIET, "objective": "binary"}, train, 20)
    return Member(
        "lgb_categories", "classification", "mlflow.lightgbm", model, frame,
        model.predict(known), refusal="categor",
    )  # fmt: skip


@member
def xgb_ranker():
    """Saved by its class, whose scores are no probabilities."""
    frame = numbers()
    model = xgboost.XGBRanker(n_estimators=10)
    model.fit(frame[:TRAIN], outcome(frame)[:TRAIN], qid=np.arange(TRAIN) // 10)
    return Member(
        "xgb_ranker", "classification", "mlflow.xgboost", model, frame,
        model.predict(frame), refusal="probabilities",
    )  # fmt: skip


@member
def xgb_other_order():
    """The spec has the features in another order."""
    frame = numbers()
    model = xgboost.XGBClassifier(n_estimators=10)
    model.fit(frame[:TRAIN], outcome(frame)[:TRAIN])
    return Member(
        "xgb_other_order", "classification", "mlflow.xgboost", model, frame,
        model.predict_proba(frame)[:, 1],
        features={"visits": "double", "amount": "double"},
    )  # fmt: skip


@member
def lgb_other_order():
    frame = numbers()
    train = lightgbm.Dataset(frame[:TRAIN], outcome(frame)[:TRAIN])
    model = lightgbm.train({**QUIET, "objective": "binary"}, train, 20)
    return Member(
        "lgb_other_order", "classification", "mlflow.lightgbm", model, frame,
        model.predict(frame), features={"visits": "double", "amount": "double"},
    )  # fmt: skip
