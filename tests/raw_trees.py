"""Miniature downloads of the paper's nineteen datasets, each in its official folders, names and formats.

`write_tree(name, raw_root)` draws the scans of one dataset (raw_scenes.py) and returns what is true about every case.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from raw_scenes import (
    Download,
    Truth,
    grid,
    paint,
    pair,
    remember,
    save,
    shade,
    shadow,
    write_dicom,
    write_masks,
)

from preprocessing.spec import load_spec

CHANNELS = ("fat", "inn", "opp", "wat")


def amos(to: Download) -> None:
    mr = to.spec.name == "amos_mr"
    also = {14: (0, 0, 0), 15: (1, 0, 0)} if mr else None
    for part, list_name, codes in (
        ("Tr", "train", "LPS"),
        ("Tr", "validation", "RAS"),
        ("Va", "test", "PIR"),
    ):
        for case in to.ids(list_name):
            pair(to, case, f"images{part}/{case}.nii.gz", f"labels{part}/{case}.nii.gz", codes, also=also)
            shadow(to.top / f"images{part}/._{case}.nii.gz")
    affine, shape = grid("LPS")
    save(
        to.top / "imagesTs" / ("amos_0600.nii.gz" if mr else "amos_0003.nii.gz"),
        np.zeros(shape, np.int16),
        affine,
    )
    shadow(to.top / "__MACOSX/imagesTr/._amos_0001.nii.gz")
    shadow(to.top / "dataset.json", b'{"name": "AMOS"}')


def autopet(to: Download) -> None:
    studies = (
        "12-05-2003-NA-PET-CT Ganzkoerper  primaer mit KM-02241",
        "09-22-2005-NA-PET-CT Ganzkörper-96698",
    )
    patients = [to.ids("train")[0], to.ids("validation")[0], to.ids("test")[0]]
    for patient in patients:
        for number, study in enumerate(studies if patient == patients[0] else studies[:1]):
            folder = f"{patient}/{study}"
            pair(
                to,
                f"{patient}_{number}",
                f"{folder}/SUV.nii.gz",
                f"{folder}/SEG.nii.gz",
                "LAS",
                subject=patient,
            )
            for other in ("CT", "CTres", "PET"):
                shadow(to.top / folder / f"{other}.nii.gz", b"")
    shadow(to.top / "fdg_metadata.csv", b"Series UID,Diagnosis\n")


def bcv(to: Download) -> None:
    for list_name in ("train", "validation", "test"):
        for case in to.ids(list_name):
            number = case.removeprefix("img")
            place = (f"Training/img/{case}.nii.gz", f"Training/label/label{number}.nii.gz")
            pair(to, case, *place, "LAS", qform=True, why="qform and sform lie")
    affine, shape = grid("LAS")
    save(to.top / "Testing/img/img0061.nii.gz", np.zeros(shape, np.int16), affine)


def brain(to: Download) -> None:
    tissues = {"grey matter": "graymatter", "white matter": "whitematter", "cerebrospinal fluid": "csf"}
    for part, list_name in (("train", "train"), ("valid", "validation"), ("test", "test")):
        for case in to.ids(list_name):
            affine, shape = grid("RAS")
            truth = paint(to.spec, affine, shape)
            save(
                to.top / part / "image" / f"{case}_img.nii",
                shade(to.spec, truth, case).astype(np.float32),
                affine,
            )
            for name, word in tissues.items():
                # a little of every tissue wherever there is one, so that the largest has to be found
                chance = 0.15 * (truth > 0) + 0.6 * (truth == to.spec.classes[name])
                save(
                    to.top / part / "mask" / f"{case}_probmask_{word}.nii", chance.astype(np.float32), affine
                )
            remember(to, case, case, truth)
    shadow(to.top / "train/image/sald_031764_img.nii", b"")


def chaos(to: Download) -> None:
    phases = {
        "t1_in": "T1DUAL/DICOM_anon/InPhase",
        "t1_out": "T1DUAL/DICOM_anon/OutPhase",
        "t2": "T2SPIR/DICOM_anon",
    }
    for list_name in ("train", "validation", "test"):
        for patient in to.ids(list_name):
            affine, shape = grid("LPS")
            truth = paint(to.spec, affine, shape)
            for name, folder in phases.items():
                place = to.top / "MR" / patient
                # The names count downwards along the body, and InPhase has the even numbers of one acquisition.
                stems = [f"IMG-0004-{2 * (shape[2] - z) - (name == 't1_out'):05d}" for z in range(shape[2])]
                write_dicom(
                    place / folder,
                    shade(to.spec, truth, f"{patient} {name}").astype(np.uint16),
                    affine,
                    stems,
                )
                if name != "t1_out":
                    write_masks(place / folder.partition("/")[0] / "Ground", to.spec, truth, stems)
                remember(to, f"{patient}_{name}", patient, truth)
    shadow(to.top / "CT/14/Ground/liver_GT_000.png", b"")


def kits(to: Download) -> None:
    for list_name in ("train", "validation", "test"):
        for case in to.ids(list_name):
            pair(to, case, f"{case}/imaging.nii.gz", f"{case}/segmentation.nii.gz", "IPL")
    affine, shape = grid("IPL")
    save(to.top / "case_00210/imaging.nii.gz", np.zeros(shape, np.int16), affine)
    shadow(to.top / "kits.json", b"[]")


def lits(to: Download) -> None:
    lost, shape = np.diag([-1.0, -1.0, 1.0, 1.0]), (62, 62, 62)
    lost[:3, 3] = [30.5, 30.5, -30.5]
    for case in (to.ids("train")[0], "volume-28", to.ids("validation")[0], to.ids("test")[0]):
        number = case.removeprefix("volume-")
        folder = f"Training Batch {1 + (int(number) >= 28)}"
        place = (f"{folder}/{case}.nii", f"{folder}/segmentation-{number}.nii")
        if case == "volume-28":
            pair(to, case, *place, grid_of=(lost, shape), why="1 x 1 x 1 mm (z,y,x) is a known placeholder")
        elif int(number) % 2:
            # the label map's own header tells nothing: its voxels are the image's
            pair(to, case, *place, "RPS", label_header=lost, why="from the image's, which places it")
        else:
            pair(to, case, *place, "LAS")
    shadow(to.top / "test-volume-0.nii", b"")


def mnms(to: Download) -> None:
    rows = ["﻿,External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex"]
    sheared = grid("LPS")[0]
    sheared[:3, 0] += 0.03 * sheared[:3, 1]
    places = (
        ("Training/Labeled", "train"),
        ("Training/Labeled", "validation"),
        ("Validation", "test"),
        ("Testing", "test"),
    )
    for number, (folder, list_name) in enumerate(places):
        code = to.ids(list_name, 2)[folder == "Testing"]
        odd = list_name == "test"
        affine, shape = (sheared if odd else grid("LPS")[0]), grid("LPS")[1]
        truth = paint(to.spec, affine, shape)
        ed, es = (1, 3) if number % 2 else (3, 0)
        series, masks = np.zeros((*shape, 5), np.int16), np.zeros((*shape, 5), np.uint8)
        for t in range(5):
            series[..., t] = shade(to.spec, truth, f"{code} {t}")
        for phase, t in (("ED", ed), ("ES", es)):
            masks[..., t] = truth
            why = "not at right angles" if odd else ""
            remember(to, f"{code}_{phase}", code, truth, why)
        save(to.top / folder / code / f"{code}_sa.nii.gz", series, affine)
        save(to.top / folder / code / f"{code}_sa_gt.nii.gz", masks, affine)
        rows.append(f"{number},{code},Siemens,A,1,{ed},{es},40,NOR,M")
    save(to.top / "Training/Unlabeled/B1B1B1/B1B1B1_sa.nii.gz", np.zeros((4, 4, 4, 2), np.int16), np.eye(4))
    rows.append("9,B1B1B1,Siemens,A,1,,,40,NOR,M")
    name = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
    shadow(to.top / name, ("\n".join(rows) + "\n").encode("utf-8"))


def structseg(to: Download) -> None:
    for list_name in ("train", "validation", "test"):
        for case in to.ids(list_name):
            turned = {"label_codes": "RPS", "why": "the label's axes are turned to the image's"}
            place = (f"{case}/data.nii.gz", f"{case}/label.nii.gz")
            pair(to, case, *place, "LAS", **(turned if list_name == "test" else {}))


def csi(to: Download) -> None:
    """One download for four datasets: the label files are written with each, equal every time."""
    channel = to.spec.name.removeprefix("csi_")
    for case in ("01", "05", "07", "15", "16"):
        place = (f"{case}/{case}_{channel}.nii", f"{case}/{case}_Labels.nii")
        mended = {"stored": {1: 255}, "why": "label value 255 is read as 1"} if case == "05" else {}
        if case == "16":
            affine, shape = grid("PIR")
            tilted = affine.copy()
            tilted[:3, 0] += 0.08 * affine[:3, 1]
            tilted[1, 3] += 4.0
            mended = {"label_grid": (tilted, shape), "why": "brought to the image's grid"}
        person = {"01": "group1", "05": "group3"}.get(case, "group4")
        pair(to, case, *place, "PIR", subject=person, **mended)
        shadow(to.top / "dataset" / f"{case}_{channel}.nii", b"")


def acdc(to: Download) -> None:
    for number, part in ((1, "training"), (2, "training"), (101, "testing")):
        patient = f"patient{number:03d}"
        ed, es = 1, 10 + number % 3
        for frame in (ed, es):
            stem = f"{part}/{patient}/{patient}_frame{frame:02d}"
            pair(
                to,
                f"{patient}_frame{frame:02d}",
                f"{stem}.nii.gz",
                f"{stem}_gt.nii.gz",
                "LPS",
                subject=patient,
            )
        shadow(to.top / part / patient / f"{patient}_4d.nii.gz", b"")
        info = f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        shadow(to.top / part / patient / "Info.cfg", info.encode())
    shadow(to.top / "MANDATORY_CITATION.md", b"")


def segthor(to: Download) -> None:
    for number in (1, 2, 40):
        case = f"Patient_{number:02d}"
        pair(to, case, f"train/{case}/{case}.nii.gz", f"train/{case}/GT.nii.gz", "RAS")
    affine, shape = grid("RAS")
    save(to.top / "test/Patient_41.nii.gz", np.zeros(shape, np.int16), affine)


def msd_pancreas(to: Download) -> None:
    for case in ("pancreas_001", "pancreas_004", "pancreas_421"):
        pair(to, case, f"imagesTr/{case}.nii.gz", f"labelsTr/{case}.nii.gz", "RAS")
        shadow(to.top / f"imagesTr/._{case}.nii.gz")
        shadow(to.top / f"labelsTr/._{case}.nii.gz")
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    shadow(to.top / "dataset.json", json.dumps({"name": "Pancreas", "labels": labels}).encode())


def pelvic(to: Download) -> None:
    for number in (1, 2, 103):
        case = f"CLINIC_{number:04d}"
        place = (
            f"CTPelvic1K_dataset6_data/dataset6_{case}_data.nii.gz",
            f"ipcai2021_dataset6_Anonymized/dataset6_{case}_mask_4label.nii.gz",
        )
        swapped = (
            {"stored": {2: 3, 3: 2}, "why": "left hip and right hip are exchanged"} if number == 2 else {}
        )
        pair(to, case, *place, "LPS" if number == 1 else "RAI", **swapped)


# dataset -> (its download's own folder under the raw root, what writes it)
TREES: dict[str, tuple[str, Callable[[Download], None]]] = {
    "acdc": ("ACDC/database", acdc),
    "amos_ct": ("amos22", amos),
    "amos_mr": ("amos22", amos),
    "autopet": ("FDG-PET-CT-Lesions", autopet),
    "bcv": ("Abdomen/RawData", bcv),
    "brain": ("3dbraintissuesegmentation", brain),
    "chaos_mr": ("CHAOS_Train_Sets/Train_Sets", chaos),
    **{f"csi_{channel}": ("IVDM3Seg", csi) for channel in CHANNELS},
    "kits19": ("kits19/data", kits),
    "lits": ("LiTS/data", lits),
    "mnms": ("OpenDataset", mnms),
    "msd_pancreas": ("Task07_Pancreas", msd_pancreas),
    "pelvic": ("CTPelvic1K", pelvic),
    "segthor": ("SegTHOR", segthor),
    "structseg_headneck": ("HaN_OAR", structseg),
    "structseg_thorax": ("Thoracic_OAR", structseg),
}


def write_tree(name: str, raw_root: Path) -> dict[str, Truth]:
    """The miniature download of one dataset under raw_root/<its own folder>; case id -> what is true."""
    top, write = TREES[name]
    download = Download(load_spec(name), raw_root / top)
    write(download)
    return download.truths
