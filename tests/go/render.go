// Renders TEMPLATEs with Go's own text/template, over the data that Ollama gives them.
//
// Reads {"templates": {name: text}, "conversations": {name: [{"role", "content"}, ...]}} from its input and prints
// {template: {conversation: the prompt, or null where the template ends with an error}}. As in Ollama, turns of one
// role that follow each other are one, and a template must name .Messages (the older way, without, is not done here).
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func collate(turns []Message) (string, []*Message) {
	system, found := []string{}, []*Message{}
	for _, turn := range turns {
		if turn.Role == "system" {
			system = append(system, turn.Content)
		}
		if last := len(found) - 1; last >= 0 && found[last].Role == turn.Role {
			found[last].Content += "\n\n" + turn.Content
		} else {
			found = append(found, &Message{turn.Role, turn.Content})
		}
	}
	return strings.Join(system, "\n\n"), found
}

func main() {
	var asked struct {
		Templates     map[string]string
		Conversations map[string][]Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatal(err)
	}
	found := map[string]map[string]*string{}
	for name, text := range asked.Templates {
		parsed, err := template.New("").Option("missingkey=zero").Parse(text)
		if err != nil || !strings.Contains(text, ".Messages") {
			log.Fatalf("%s: %v", name, err)
		}
		found[name] = map[string]*string{}
		for called, turns := range asked.Conversations {
			system, messages := collate(turns)
			data := map[string]any{"System": system, "Messages": messages, "Response": "", "Think": false}
			var prompt strings.Builder
			if err := parsed.Execute(&prompt, data); err != nil {
				found[name][called] = nil
				continue
			}
			whole := prompt.String()
			found[name][called] = &whole
		}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	if err := out.Encode(found); err != nil {
		log.Fatal(err)
	}
}
