"""The layout of brain MR slices: healthy ones, and ones with a tumor and its mask."""

from bigan_jax.data.layouts.folder import list_label_folders
from bigan_jax.data.layouts.layout import Layout, has_normal_folder

EXPECTED = """\
  dir/healthy/                 slices without a tumor (or notumor/)
  dir/tumor/                   slices with one (or glioma/, meningioma/, pituitary/)
  dir/tumor_mask/              their masks, optional: the same name
  dir/metadata.csv             optional; columns file and patient, plane
Download Kaggle mateuszbuda/lgg-mri-segmentation (110 patients, 3,929 slices and masks; CC
BY-NC-SA 4.0; sort its slices into these folders) or masoudnickparvar/brain-tumor-mri-dataset
(its archive.zip can be used as it is; no patients, and the origin of an image predicts its
label)."""

LAYOUT = Layout(
    name="brain",
    expected=EXPECTED,
    builder="brain_mri",
    description="Brain MR slices, with and without a tumor.",
    is_root=has_normal_folder,
    list_datasets=list_label_folders,
    reads_metadata=True,
    strict_metadata=True,  # it names the patients
    labels_at_any_depth=True,
)
