// A task's life with the client for Java; prints what the service says of it at the end.
import java.net.URI;
import java.util.List;
import java.util.Map;
import org.openapitools.client.ApiClient;
import org.openapitools.client.api.AgentsApi;
import org.openapitools.client.api.DeliveriesApi;
import org.openapitools.client.api.LogsApi;
import org.openapitools.client.api.TasksApi;
import org.openapitools.client.model.Append;
import org.openapitools.client.model.Report;
import org.openapitools.client.model.Start;

class Life {
  public static void main(String[] args) throws Exception {
    var client = new ApiClient();
    client.updateBaseUri(args[0]);
    client.setRequestInterceptor(request -> request.header("apikey", args[1]));
    var tasks = new TasksApi(client);
    var logs = new LogsApi(client);

    new AgentsApi(client).putAgent("adder", null);
    var start = new Start().agentId("adder").input(Map.of("numbers", List.of(1, 2)))
        .callback(URI.create(args[2])).claim(true);
    var task = tasks.startTask(start, null, null, null);
    var id = task.getId();
    logs.appendLogs(id, null, null, null, null, new Append().logs(List.of("one", "two")));
    int sum = 0;
    for (var number : (List<?>) task.getInput().get("numbers")) {
      sum += (Integer) number;
    }
    var report = new Report().status(Report.StatusEnum.COMPLETE).output(Map.of("sum", sum));
    tasks.reportTask(id, null, null, null, report);
    task = tasks.getTask(id, null, null, null, null);
    var page = logs.readLogs(id, null, null, null, null);
    var deliveries = new DeliveriesApi(client).listDeliveries(id);
    System.out.println(String.join(" ", id.toString(), task.getStatus().toString(),
        task.getOutput().get("sum").toString(), String.join(",", page.getLogs()),
        deliveries.get(0).getState().toString()));
  }
}
