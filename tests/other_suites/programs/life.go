// A task's life with the client for Go; prints what the service says of it at the end.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	openapi "example.com/taskservice/client"
)

func must[Result, Response any](result Result, _ Response, err error) Result {
	if err != nil {
		panic(err)
	}
	return result
}

func main() {
	configuration := openapi.NewConfiguration()
	configuration.Servers = openapi.ServerConfigurations{{URL: os.Args[1]}}
	client := openapi.NewAPIClient(configuration)
	keys := map[string]openapi.APIKey{"apikey": {Key: os.Args[2]}}
	ctx := context.WithValue(context.Background(), openapi.ContextAPIKeys, keys)

	must(client.AgentsAPI.PutAgent(ctx, "adder").Execute())
	start := openapi.NewStart("adder")
	start.SetInput(map[string]interface{}{"numbers": []int{1, 2}})
	start.SetCallback(os.Args[3])
	start.SetClaim(true)
	task := must(client.TasksAPI.StartTask(ctx).Start(*start).Execute())
	lines := openapi.NewAppend([]string{"one", "two"})
	must(client.LogsAPI.AppendLogs(ctx, task.GetId()).Append(*lines).Execute())
	sum := 0.0
	for _, number := range task.Input["numbers"].([]interface{}) {
		sum += number.(float64)
	}
	report := openapi.NewReport()
	report.SetStatus("complete")
	report.SetOutput(map[string]interface{}{"sum": sum})
	must(client.TasksAPI.ReportTask(ctx, task.GetId()).Report(*report).Execute())
	task = must(client.TasksAPI.GetTask(ctx, task.GetId()).Execute())
	page := must(client.LogsAPI.ReadLogs(ctx, task.GetId()).Execute())
	deliveries := must(client.DeliveriesAPI.ListDeliveries(ctx, task.GetId()).Execute())
	fmt.Println(task.GetId(), task.GetStatus(), task.GetOutput()["sum"],
		strings.Join(page.Logs, ","), deliveries[0].GetState())
}
