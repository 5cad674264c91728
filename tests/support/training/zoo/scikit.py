"""scikit-learn's estimators, saved as skops, which is MLflow's default."""

import numpy as np
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from tests.support.training.zoo.members import (
    MAKERS,
    NUMBERS,
    TRAIN,
    Member,
    amount,
    numbers,
    outcome,
)

CITIES = ["Aachen", "Bonn", "Cologne", "Düren"]
SKOPS = {"serialization_format": "skops"}


def with_text(rows):
    cities = np.random.default_rng(3).choice(CITIES, len(rows))
    return rows.assign(city=cities)


def with_nulls(rows):
    return rows.mask(np.random.default_rng(4).random(rows.shape) < 0.1)


def scikit(name, make_model, rows, *, task="classification", y=None, **more):
    """Add a model to the zoo: fitted on the first rows, asked for all."""

    def make():
        frame = rows()
        count = 3 if task == "multiclass" else 2
        filled = frame.assign(**frame[NUMBERS].fillna(0))
        labels = amount(filled) if task == "regression" else outcome(filled, count)
        labels = labels if y is None else y(labels)
        model = make_model().fit(frame[:TRAIN], labels[:TRAIN])
        if task == "regression":
            scores = model.predict(frame)
        elif hasattr(model, "predict_proba"):
            scores = model.predict_proba(frame)
            scores = scores if task == "multiclass" else scores[:, 1]
        else:
            scores = model.decision_function(frame)
        trusted = skops.io.get_untrusted_types(data=skops.io.dumps(model))
        options = {**SKOPS, "skops_trusted_types": trusted or None}
        return Member(
            name, task, "mlflow.sklearn", model, frame, np.asarray(scores), options,
            trusted=trusted, **more,
        )  # fmt: skip

    MAKERS[name] = make


def by_position():
    columns = ColumnTransformer(
        [("one", StandardScaler(), [1]), ("rest", "passthrough", [0])]
    )
    return make_pipeline(columns, DecisionTreeClassifier(max_depth=3))


def by_name():
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["city"]), (StandardScaler(), NUMBERS)
    )
    return make_pipeline(columns, LogisticRegression())


def ordinal():
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, ["city"]), remainder="passthrough")
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=20))


def nested():
    inner = make_pipeline(SimpleImputer(), StandardScaler())
    return make_pipeline(inner, make_pipeline(LogisticRegression()))


def union():
    parts = FeatureUnion([("scaled", MinMaxScaler()), ("bins", KBinsDiscretizer(3))])
    return make_pipeline(parts, LogisticRegression())


def search():
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    return GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0]}, cv=3)


def voting():
    parts = [("l", LogisticRegression()), ("t", DecisionTreeClassifier(max_depth=2))]
    return VotingClassifier(parts, voting="soft")


def stacking():
    parts = [("l", LogisticRegression()), ("t", DecisionTreeClassifier(max_depth=2))]
    return StackingClassifier(parts, cv=3)


def forest():
    return RandomForestClassifier(20, random_state=1)


def readings():
    """Meter readings: float32 cannot tell one from the next."""
    return numbers(scale=40.0, middle=1e9)


def tiny():
    return numbers(scale=1e-9)


def seconds():
    """Seconds since 1970, as int64."""
    rows = numbers(scale=1e6, middle=1.79e9)
    return rows.assign(amount=rows["amount"].astype("int64"))


def large_integers():
    rows = numbers(scale=50, middle=2**24 * 5)
    return rows.astype("int64")


def with_flag():
    rows = numbers()
    return rows.assign(flag=rows["amount"] > 0.3)


def small_types():
    rows = numbers(scale=20)
    types = {"amount": "float32", "visits": "int32"}
    return rows.astype(types)


def text():
    return with_text(numbers())


def text_names(labels):
    return np.array(["early", "late", "never"])[labels]


def text_outcome(labels):
    return np.array(["no", "yes"])[labels]


def plus_one(labels):
    return labels + 1


scikit("logistic", LogisticRegression, numbers)
scikit("scaled", lambda: make_pipeline(StandardScaler(), LogisticRegression()), numbers)
scikit("by_name", by_name, text)
scikit("by_position", by_position, numbers)
scikit("ordinal", ordinal, text)
scikit("nested", nested, lambda: with_nulls(numbers()))
scikit("union", union, numbers)
scikit("search", search, numbers)
scikit("forest", forest, numbers)
scikit("forest_of_readings", forest, readings)
scikit("forest_of_seconds", forest, seconds)
scikit("forest_of_integers", forest, large_integers)
scikit("boosting", lambda: GradientBoostingClassifier(n_estimators=20), numbers)
scikit(
    "hist_boosting", lambda: HistGradientBoostingClassifier(max_iter=30),
    lambda: with_nulls(numbers()),
)  # fmt: skip
scikit(
    "hist_boosting_three", lambda: HistGradientBoostingClassifier(max_iter=10), numbers,
    task="multiclass", classes=("0", "1", "2"),
)  # fmt: skip
scikit(
    "poisson_boosting", lambda: HistGradientBoostingRegressor(loss="poisson", max_iter=20),
    numbers, task="regression",
)  # fmt: skip
scikit("linear", LinearRegression, numbers, task="regression")
scikit("linear_of_readings", LinearRegression, readings, task="regression")
scikit(
    "scaled_readings", lambda: make_pipeline(StandardScaler(), Ridge()), readings,
    task="regression",
)  # fmt: skip
scikit("ridge_of_tiny", Ridge, tiny, task="regression")
scikit("linear_of_tiny", LinearRegression, tiny, task="regression")
scikit(
    "forest_regression", lambda: RandomForestRegressor(20), numbers, task="regression"
)
scikit("extra_trees", lambda: ExtraTreesRegressor(20), readings, task="regression")
scikit(
    "boosting_regression", lambda: GradientBoostingRegressor(n_estimators=20), numbers,
    task="regression",
)  # fmt: skip
scikit("poisson", PoissonRegressor, numbers, task="regression")
scikit(
    "names", LogisticRegression, numbers, task="multiclass", y=text_names,
    classes=("early", "late", "never"),
)  # fmt: skip
scikit(
    "names_of_forest", forest, numbers, task="multiclass", y=text_names,
    classes=("early", "late", "never"),
)  # fmt: skip
scikit("yes_no", LogisticRegression, numbers, y=text_outcome, refusal="no and yes")
scikit("one_two", LogisticRegression, numbers, y=plus_one, refusal="1 and 2")
scikit("flags", LogisticRegression, numbers, y=lambda labels: labels == 1)
scikit("imputer", nested, lambda: with_nulls(readings()))
scikit("svc", lambda: make_pipeline(StandardScaler(), SVC(probability=True)), numbers)
scikit("neighbours", KNeighborsClassifier, numbers)
scikit("network", lambda: MLPClassifier((8,), max_iter=60), numbers)
scikit(
    "isotonic", lambda: CalibratedClassifierCV(GaussianNB(), method="isotonic"), numbers
)
scikit(
    "sigmoid", lambda: CalibratedClassifierCV(LinearSVC(), method="sigmoid"), numbers
)
scikit("voting", voting, numbers)
scikit("tree", DecisionTreeClassifier, numbers)
scikit("nearest", lambda: KNeighborsClassifier(1), numbers)
scikit("stacking", stacking, numbers)
scikit("bayes", GaussianNB, numbers)
scikit("discriminant", LinearDiscriminantAnalysis, numbers)
scikit(
    "polynomial",
    lambda: make_pipeline(PolynomialFeatures(2), RobustScaler(), LogisticRegression()),
    numbers,
)  # fmt: skip
scikit(
    "quantiles",
    lambda: make_pipeline(QuantileTransformer(n_quantiles=50), LogisticRegression()),
    numbers,
)  # fmt: skip
scikit("best", lambda: make_pipeline(SelectKBest(k=1), LogisticRegression()), numbers)
scikit("with_flag", forest, with_flag)
scikit("small_types", forest, small_types)
scikit("linear_svc", LinearSVC, numbers, refusal="probabilities")
scikit("ridge_classifier", RidgeClassifier, numbers, refusal="probabilities")
