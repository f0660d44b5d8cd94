"""The yardstick: a Flask view that answers constant bytes."""

from flask import Flask, Response

BODY = b'{"hello":"world"}'

app = Flask(__name__, static_folder=None)


@app.get("/")
def hello() -> Response:
    return Response(BODY, mimetype="application/json")
