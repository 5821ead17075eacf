import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/** Sends each request of a file with one client of Java and prints the status that it hears: Early HttpClient|HttpURLConnection CASES */
public class Early {
    static int client(String method, String url, byte[] body, String[] headers) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(60));
        if (headers.length > 0) request.headers(headers);
        request.method(method, HttpRequest.BodyPublishers.ofByteArray(body));
        return HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString()).statusCode();
    }

    static int connection(String method, String url, byte[] body, String[] headers) throws IOException {
        HttpURLConnection c = (HttpURLConnection) URI.create(url).toURL().openConnection();
        c.setRequestMethod(method);
        c.setDoOutput(true);
        c.setReadTimeout(60_000);
        c.setFixedLengthStreamingMode(body.length);
        for (int i = 0; i < headers.length; i += 2) c.setRequestProperty(headers[i], headers[i + 1]);
        try (var out = c.getOutputStream()) {
            out.write(body);
        }
        return c.getResponseCode();
    }

    public static void main(String[] args) throws Exception {
        for (String line : Files.readAllLines(Path.of(args[1]))) {
            String[] f = line.split("\t");
            // {"a": "b", "c": "d"} of plain text.
            String json = f[4].substring(1, f[4].length() - 1).trim();
            String[] headers = json.isEmpty() ? new String[0] : json.replace("\"", "").split("\\s*[:,] \\s*");
            byte[] body = Files.readAllBytes(Path.of(f[3]));
            String heard;
            try {
                heard = "" + (args[0].equals("HttpClient") ? client(f[1], f[2], body, headers) : connection(f[1], f[2], body, headers));
            } catch (Exception e) {
                heard = e.toString();
            }
            System.out.println(f[0] + "\t" + heard.replace("\n", " "));
        }
    }
}
