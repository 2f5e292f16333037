"""Small scikit-learn pipelines as ONNX models, with the operators of ai.onnx.ml; none where skl2onnx is missing."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
from support.corpus import Case

FEATURES, ROWS, SEED = 6, 120, 3


def pipelines() -> list[Case]:
    """One model for each estimator; classifiers once with the ZipMap that skl2onnx adds by default, once without."""
    if find_spec("skl2onnx") is None or find_spec("sklearn") is None:
        print("no scikit-learn pipelines: skl2onnx is not installed")
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _made()


def _made() -> list[Case]:
    from skl2onnx import to_onnx  # noqa: PLC0415 - only where it is installed

    random = np.random.default_rng(SEED)
    x = random.standard_normal((ROWS, FEATURES)).astype(np.float32)
    labels = (x[:, 0] + x[:, 1] ** 2 > 1).astype(np.int64) + (x[:, 2] > 0.5)
    feed = {"X": x[:4]}
    made = []
    for name, estimator in _estimators().items():
        estimator.fit(x, labels)
        variants = [("", {})]
        if hasattr(estimator, "predict_proba"):
            variants = [("_zipmap", {}), ("", {"options": {id(estimator): {"zipmap": False}}})]
        for suffix, options in variants:
            try:
                model = to_onnx(estimator, x[:1], target_opset={"": 20, "ai.onnx.ml": 3}, **options)
            except Exception as error:
                print(f"sklearn/{name}{suffix}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
                continue
            made.append(Case(f"sklearn/{name}{suffix}", model, feed))
    return made


def _estimators() -> dict[str, object]:
    from sklearn import (  # noqa: PLC0415
        cluster,
        decomposition,
        ensemble,
        linear_model,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        preprocessing,
        svm,
        tree,
    )

    return {
        "logistic_regression": linear_model.LogisticRegression(),
        "sgd_classifier": linear_model.SGDClassifier(random_state=0),
        "linear_regression": linear_model.LinearRegression(),
        "ridge": linear_model.Ridge(),
        "svc": svm.SVC(random_state=0),
        "svr": svm.SVR(),
        "linear_svc": svm.LinearSVC(random_state=0),
        "decision_tree": tree.DecisionTreeClassifier(max_depth=4, random_state=0),
        "tree_regressor": tree.DecisionTreeRegressor(max_depth=4, random_state=0),
        "random_forest": ensemble.RandomForestClassifier(5, max_depth=4, random_state=0),
        "gradient_boosting": ensemble.GradientBoostingRegressor(n_estimators=5, random_state=0),
        "gaussian_nb": naive_bayes.GaussianNB(),
        "bernoulli_nb": naive_bayes.BernoulliNB(),
        "k_neighbours": neighbors.KNeighborsClassifier(3),
        "mlp_classifier": neural_network.MLPClassifier(hidden_layer_sizes=(8,), max_iter=50, random_state=0),
        "mlp_regressor": neural_network.MLPRegressor(hidden_layer_sizes=(8,), max_iter=50, random_state=0),
        "k_means": cluster.KMeans(3, n_init=2, random_state=0),
        "pca": decomposition.PCA(3),
        "standard_scaler": preprocessing.StandardScaler(),
        "min_max_scaler": preprocessing.MinMaxScaler(),
        "normalizer": preprocessing.Normalizer(),
        "binarizer": preprocessing.Binarizer(),
        "scaled_logistic": pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
        "scaled_svc": pipeline.make_pipeline(preprocessing.MinMaxScaler(), svm.SVC(random_state=0)),
    }
