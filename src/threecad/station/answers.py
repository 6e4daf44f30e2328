"""What whoever handed in a part is told of its record: over HTTP, in a line of a file, or by a webhook."""

from __future__ import annotations

from typing import Any

from threecad.station import chain


def answer_of(row: chain.Row) -> dict[str, Any]:
    """What a client is told of a record."""
    said = row.content
    place = f"/v1/parts/{said['id']}"
    return {
        "resultId": said["id"],
        "partId": said["part"],
        "recipeId": said["recipe"],
        "jobId": said["lot"],
        "creationTime": said["at"],
        "isSimulated": bool(said["simulated"]),
        "processingTimes": {
            "startTime": said["start"],
            "endTime": said["end"],
            "processingDuration": said["duration_ms"],
        },
        "verdict": said["verdict"],
        "reason": said["reason"],
        "score": said["score"],
        "good_share": said["good_share"],
        "regions": said["regions"],
        "thresholds": said["thresholds"],
        "model": said["model"],
        "size": said["size"],
        "record": {"seq": row.seq, "hash": row.hash},
        "links": {
            "self": place,
            "image": f"{place}/image",
            "map": f"{place}/map" if said["scale"] else None,
            "overlay": f"{place}/overlay" if said["scale"] else None,
            "golden": f"{place}/golden" if said["golden"] else None,
        },
    }
