"""The layouts of real sets: from the names in a folder to a list of records, nothing decoded."""

from collections.abc import Sequence

from bigan_jax.errors import UserError, unknown_name

# In small letters: Normal/ is normal/.
NORMAL = ("normal", "good", "ok", "healthy", "notumor", "no_tumor")
ANOMALOUS = ("anomalous", "abnormal", "anomaly", "defect", "defective", "bad", "nok", "ng")
ANOMALOUS += ("diseased", "tumor")
ANOMALOUS += ("glioma", "meningioma", "pituitary")  # of Kaggle's brain sets, each its own kind
MASKS = ("masks", "mask", "ground_truth", "tumor_mask")
LEAST_NORMAL = 10
_MEANINGS = {"normal": NORMAL, "anomalous": ANOMALOUS, "masks": MASKS}

EXPECTED = {
    "folder": """\
  dir/*.png                    normal pictures only, or
  dir/normal/                  normal pictures (or good/, ok/, healthy/)
  dir/anomalous/[<kind>/]      anomalous ones, optional (or defect/, bad/, nok/, diseased/)
  dir/masks/[<kind>/]          their masks, optional: the same name, or <name>_mask
  dir/metadata.csv             optional; columns file and group (views of one part, one patient),
                               condition (what a picture shows)""",
    "brain": """\
  dir/healthy/                 slices without a tumour (or notumor/)
  dir/tumor/                   slices with one (or glioma/, meningioma/, pituitary/)
  dir/tumor_mask/              their masks, optional: the same name
  dir/metadata.csv             optional; columns file and patient, plane
To be had as Kaggle mateuszbuda/lgg-mri-segmentation (110 patients, 3,929 slices and masks; CC
BY-NC-SA 4.0; sort its slices into these folders) or masoudnickparvar/brain-tumor-mri-dataset
(its archive.zip will do; no patients, and the source of a picture predicts its label).""",
    "mvtec": """\
  dir/<category>/train/good/
  dir/<category>/test/good/, dir/<category>/test/<kind>/
  dir/<category>/ground_truth/<kind>/000_mask.png
To be had at https://www.mvtec.com/company/research/datasets/mvtec-ad (15 categories, 5,354
pictures; CC BY-NC-SA 4.0); mvtec_anomaly_detection.tar.xz or one category's archive will do.""",
    "plant": """\
  dir/<species>___healthy/, dir/<species>___<disease>/      as in PlantVillage, or
  dir/healthy/, dir/diseased/
To be had as Kaggle emmarex/plantdisease (its archive.zip will do) or TFDS plant_village (found
where it is prepared; 38 classes, 54,303 pictures); CC BY-SA 3.0 is the license usually named.""",
}


def layout_error(source: str, problem: str) -> UserError:
    """The error for a folder that is not laid out as `source` has to be."""
    return UserError(
        f"{problem}\n"
        f"The source {source!r} expects (dir is --config.data.dir, a folder or an archive of it):\n"
        f"{EXPECTED[source]}\n"
        "To try things now, without any data: --config=configs/<model>.py:phantom"
    )


def select_categories(category: str, available: Sequence[str]) -> list[str]:
    """The names in the comma list `category`, each once; all of `available` for "" and "all"."""
    names = [name.strip() for name in category.split(",") if name.strip()]
    if names in ([], ["all"]):
        return list(available)
    for name in names:
        if name not in available:
            raise unknown_name("category", name, available)
    return list(dict.fromkeys(names))
