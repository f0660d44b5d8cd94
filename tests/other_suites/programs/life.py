"""A task's life with the client for Python; prints what the service says of it at the end."""

import sys

import openapi_client as client
from openapi_client.api import agents_api, deliveries_api, logs_api, tasks_api

url, key, callback = sys.argv[1:]
with client.ApiClient(client.Configuration(host=url, api_key={"apikey": key})) as connection:
    agents_api.AgentsApi(connection).put_agent("adder")
    tasks = tasks_api.TasksApi(connection)
    start = {"agentId": "adder", "input": {"numbers": [1, 2]}, "callback": callback, "claim": True}
    task = tasks.start_task(client.Start.model_validate(start))
    logs = logs_api.LogsApi(connection)
    logs.append_logs(task.id, append=client.Append(logs=["one", "two"]))
    report = {"status": "complete", "output": {"sum": sum(task.input["numbers"])}}
    tasks.report_task(task.id, report=client.Report.model_validate(report))
    task = tasks.get_task(task.id)
    lines = logs.read_logs(task.id).logs
    (delivery,) = deliveries_api.DeliveriesApi(connection).list_deliveries(task.id)
    print(task.id, task.status, task.output["sum"], ",".join(lines), delivery.state)
