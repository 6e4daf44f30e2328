"""The inspection station: a service for the line, and pages for the people at it.

    service.py     what is asked over HTTP, engineer.py what is changed; pages.py for browsers; safety.py who may
    uploads.py     from a request to a picture
    line.py        from a picture to one record: accepted, queued, inspected before its deadline
    inspecting.py  a run or a bundle as a recipe; the only file that asks a detector; optics.py how a picture was taken
    models.py      another model in a recipe's place, while parts are on their way
    store.py       records in SQLite, chained by hashes in chain.py; pictures.py the files beside them
    retention.py   which of those files are removed after a while
    health.py      counts, shares and latencies; drift.py whether the parts are still like the first ones
    feedback.py    what people's answers give back: good parts for the thresholds, and labelled pictures
    replay.py      what another model would say of the parts of before
    serving.py     a station from folders, until it is told to stop
    watching.py    pictures that arrive in a folder; webhook.py records that are posted; both run in beside.py
    simulated.py   a line of drawn parts for `threecad serve --demo`

Reads predictors and verdicts; knows nothing of training.
"""
