# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AnomalyDetector
#
# `AnomalyDetector` has the interface of scikit-learn's outlier detectors. It learns from normal images alone. This
# notebook takes a minute on a laptop: the images are drawn, and the model is small. Open it in Jupyter with
# `jupytext --to notebook anomaly_detector.py`.

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import KFold, cross_val_score

from bigan_jax import AnomalyDetector
from bigan_jax.data import phantom

SIZE = 32
normal = np.stack([phantom.draw("bottle", i, SIZE, 1, None)[0] for i in range(120)])
defects = phantom.DOMAINS["bottle"].DEFECTS
defective = np.stack([phantom.draw("bottle", 1000 + i, SIZE, 1, defect)[0] for i, defect in enumerate(defects)])
print(normal.shape, normal.dtype)

# %% [markdown]
# ## Fit
#
# `X` is a uint8 array, a list of arrays, Pillow images or paths of any size, or the name of a folder. `fit` leaves some
# images out of the training. The threshold comes from their scores and keeps a rate of false alarms.

# %%
train, new = normal[:100], normal[100:]
detector = AnomalyDetector("pca", image_size=SIZE, false_alarm_rate=0.05).fit(train)
print(detector.promise_)

# %% [markdown]
# ## Predict
#
# As in scikit-learn, -1 is anomalous and +1 is normal, and a decision below 0 is anomalous.

# %%
print(detector.predict(new))
print(detector.predict(defective))
print(detector.decision_function(defective).round(2))

# %% [markdown]
# ## Explain
#
# A map is higher where the image is anomalous. Pixels that reach `pixel_threshold_` are marked.

# %%
maps = detector.explain(defective)
figure, axes = plt.subplots(2, len(defective), squeeze=False)
for column, (image, error) in enumerate(zip(defective, maps, strict=True)):
    axes[0, column].imshow(image[..., 0], cmap="gray")
    axes[1, column].imshow(error >= detector.pixel_threshold_)
figure.tight_layout()

# %% [markdown]
# ## Save and load
#
# The folder also works with `bigan-jax predict FOLDER IMAGES --output=DIR`.

# %%
with tempfile.TemporaryDirectory() as folder:
    detector.save(f"{folder}/detector")
    loaded = AnomalyDetector.load(f"{folder}/detector")
assert (loaded.score_samples(new) == detector.score_samples(new)).all()

# %% [markdown]
# ## Cross-validate
#
# Labels are +1 and -1. Anomalous images of the training folds are left out.

# %%
X, y = np.concatenate([train, defective]), np.repeat([1, -1], [len(train), len(defective)])
folds = KFold(2, shuffle=True, random_state=0)
print(cross_val_score(AnomalyDetector("mahalanobis", image_size=SIZE), X, y, cv=folds, scoring="roc_auc"))

# %% [markdown]
# ## Next
#
# - Another model: `AnomalyDetector("cae", epochs=50)` trains a network; `bigan-jax models` lists all.
# - Other settings: `config={"batch_size": 8, "augment.flip": True}`, with any field of the config.
# - A long training: `workdir="runs/mine"` keeps its checkpoints, and the same call resumes it.
