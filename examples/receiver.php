<?php
// A receiver of webhooks for PHP 8. A web server runs it unchanged. To try it:
//
//   CALLBACK_SECRET=whsec_... php -S 127.0.0.1:9000 receiver.php

$key = base64_decode(str_replace('whsec_', '', getenv('CALLBACK_SECRET')));
$body = file_get_contents('php://input');
$id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
$timestamp = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '0';
$expected = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$timestamp.$body", $key, true));
$isSigned = false;
foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $signature) {
    $isSigned = $isSigned || hash_equals($expected, $signature);
}
if (!$isSigned || abs(time() - (int) $timestamp) > 300) {
    http_response_code(400);
    exit;
}
$task = json_decode($body);
file_put_contents('php://stderr', "{$task->name} {$task->status} " . json_encode($task->output) . "\n");
http_response_code(204);
