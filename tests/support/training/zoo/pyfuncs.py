"""Models of a team's own code, as `mlflow.pyfunc` keeps them, and pickles."""

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from tests.support.training.zoo.members import MAKERS, TRAIN, Member, numbers, outcome
from tests.support.training.zoo.scikit import forest, text, with_nulls

FLAVOR = "mlflow.pyfunc"


def probability(frame):
    return 1 / (1 + np.exp(-frame["amount"].fillna(0) - frame["visits"].fillna(0)))


class Rule(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        return probability(model_input).to_numpy()


class Series(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        return probability(model_input)


class Frame(mlflow.pyfunc.PythonModel):
    """Columns named after classes, in another order than the spec's."""

    def predict(self, context, model_input, params=None):  # noqa: ARG002
        p = probability(model_input)
        return pd.DataFrame({"never": p / 2, "late": p / 2, "early": 1 - p})


class Listed(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        return [float(value) for value in probability(model_input)]


class TwoColumns(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        p = probability(model_input).to_numpy()
        return np.column_stack([1 - p, p])


class Classes(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        return (probability(model_input) > 0.5).to_numpy()


class Logits(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        return (model_input["amount"] + model_input["visits"]).to_numpy()


class NullText(mlflow.pyfunc.PythonModel):
    """A city that is null is another thing than a city of any name."""

    def predict(self, context, model_input, params=None):  # noqa: ARG002
        known = model_input["city"].map({"Bonn": 0.7, "Aachen": 0.2})
        return (
            known.where(known.notna(), 0.5)
            .mask(model_input["city"].isna(), 0.11)
            .to_numpy()
        )


class Optional(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        p = probability(model_input)
        if "coupon" in model_input and model_input["coupon"].notna().any():
            return p.to_numpy() * 0
        return p.to_numpy()


def own(name, python_model, rows, scores, task="classification", **more):
    def make():
        frame = rows()
        return Member(
            name, task, FLAVOR, {"python_model": python_model()}, frame,
            np.asarray(scores(frame)), **more,
        )  # fmt: skip

    MAKERS[name] = make


def three(frame):
    p = probability(frame)
    return np.column_stack([1 - p, p / 2, p / 2])


def null_text():
    rows = text()
    return rows.assign(city=rows["city"].where(rows["city"] != "Cologne", None))


def nulls():
    return with_nulls(numbers())


def optional_signature():
    columns = [ColSpec("double", "amount"), ColSpec("double", "visits")]
    columns.append(ColSpec("string", "coupon", required=False))
    return ModelSignature(inputs=Schema(columns))


own("rule", Rule, numbers, probability)
own("rule_of_nulls", Rule, nulls, probability)
own("series", Series, numbers, probability)
own("listed", Listed, numbers, probability)
own("two_columns", TwoColumns, numbers, probability)
own(
    "named_columns", Frame, numbers, three, task="multiclass",
    classes=("early", "late", "never"),
)  # fmt: skip
own("wrong_names", Frame, numbers, three, task="multiclass", classes=("a", "b", "c"),
    refusal="never, late, early")  # fmt: skip
own("classes", Classes, numbers, probability, refusal="classes")
own("logits", Logits, numbers, probability, refusal="probabilities")
own("null_text", NullText, null_text, lambda rows: NullText().predict(None, rows))
own("optional", Optional, numbers, probability, signature=optional_signature())


def pickled(name, make_model, **more):
    def make():
        frame = numbers()
        model = make_model().fit(frame[:TRAIN], outcome(frame)[:TRAIN])
        return Member(
            name, "classification", "mlflow.sklearn", model, frame,
            model.predict_proba(frame)[:, 1], {"serialization_format": "cloudpickle"},
            **more,
        )  # fmt: skip

    MAKERS[name] = make


def squared(values):
    return values**2


pickled("pickle", forest)
pickled(
    "pickled_function",
    lambda: make_pipeline(FunctionTransformer(squared), LogisticRegression()),
)
