import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;

/** Asks for customers 4 and 8 with the client of the JDK as it comes: java Predict.java ADDRESS */
class Predict {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int customer : new int[] {4, 8}) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/predict"))
                .header("Content-Type", "application/json")
                .POST(BodyPublishers.ofString("{\"customer_id\": " + customer + "}"))
                .build();
            HttpResponse<String> answer = client.send(request, BodyHandlers.ofString());
            HttpResponse<String> again = client.sendAsync(request, BodyHandlers.ofString()).join();
            System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
            System.out.println(again.statusCode() + " " + again.version() + " " + again.body());
        }
    }
}
