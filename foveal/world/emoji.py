"""Named emoji: what a question calls each, and the character that draws it in the Noto Emoji font (one colour, any colour).

No name is also the name of a shape or an icon of the first edition.
"""

from __future__ import annotations

EMOJI_FACE = "NotoEmoji@500"

_TABLE = """
dog 🐕 dog face 🐶 mouse face 🐭 hamster 🐹 rabbit face 🐰 fox 🦊 bear 🐻 panda 🐼 koala 🐨 tiger face 🐯 lion 🦁
cow face 🐮 pig face 🐷 frog 🐸 monkey face 🐵 chicken 🐔 penguin 🐧 bird 🐦 chick 🐤 duck 🦆 eagle 🦅 owl 🦉 bat 🦇
wolf 🐺 boar 🐗 horse face 🐴 unicorn 🦄 bee 🐝 butterfly 🦋 snail 🐌 ladybug 🐞 ant 🐜 spider 🕷 scorpion 🦂
turtle 🐢 snake 🐍 lizard 🦎 dinosaur 🦕 octopus 🐙 squid 🦑 shrimp 🦐 crab 🦀 blowfish 🐡 dolphin 🐬 whale 🐳
shark 🦈 crocodile 🐊 leopard 🐆 zebra 🦓 gorilla 🦍 elephant 🐘 rhino 🦏 camel 🐪 giraffe 🦒 kangaroo 🦘 ox 🐂
goat 🐐 sheep 🐑 llama 🦙 deer 🦌 turkey 🦃 peacock 🦚 parrot 🦜 swan 🦢 dove 🕊 rat 🐀 squirrel 🐿 hedgehog 🦔
dragon 🐉 paw prints 🐾 cactus 🌵 palm tree 🌴 seedling 🌱 clover 🍀 maple leaf 🍁 tulip 🌷 sunflower 🌻 rose 🌹
globe 🌍 snowflake ❄ rainbow 🌈 cloud ☁ tornado 🌪 fire 🔥 droplet 💧 wave 🌊 lightning ⚡ snowman ⛄ apple 🍎
pear 🍐 lemon 🍋 banana 🍌 watermelon 🍉 grapes 🍇 strawberry 🍓 cherries 🍒 peach 🍑 pineapple 🍍 coconut 🥥 kiwi 🥝
tomato 🍅 eggplant 🍆 avocado 🥑 broccoli 🥦 carrot 🥕 corn 🌽 pepper 🌶 cucumber 🥒 potato 🥔 bread 🍞 croissant 🥐
pretzel 🥨 cheese 🧀 egg 🥚 pancakes 🥞 bacon 🥓 steak 🥩 hamburger 🍔 french fries 🍟 pizza 🍕 hot dog 🌭
sandwich 🥪 taco 🌮 salad 🥗 popcorn 🍿 sushi 🍣 ice cream 🍨 doughnut 🍩 cookie 🍪 birthday cake 🎂 cupcake 🧁
pie 🥧 candy 🍬 lollipop 🍭 honey pot 🍯 baby bottle 🍼 teapot 🫖 wine glass 🍷 cocktail 🍸 beer mug 🍺
chopsticks 🥢 spoon 🥄 knife 🔪 football ⚽ basketball 🏀 baseball ⚾ tennis 🎾 volleyball 🏐 bowling 🎳
boxing glove 🥊 trophy 🏆 medal 🏅 dart 🎯 kite 🪁 yo-yo 🪀 dice 🎲 puzzle piece 🧩 teddy bear 🧸 guitar 🎸 violin 🎻
trumpet 🎺 saxophone 🎷 drum 🥁 piano 🎹 microphone 🎤 headphones 🎧 bus 🚌 ambulance 🚑 fire engine 🚒
police car 🚓 taxi 🚕 truck 🚚 tractor 🚜 bicycle 🚲 motorcycle 🏍 train 🚆 tram 🚊 airplane ✈ helicopter 🚁
rocket 🚀 flying saucer 🛸 sailboat ⛵ canoe 🛶 ship 🚢 anchor ⚓ traffic light 🚦 fuel pump ⛽ castle 🏰 church ⛪
factory 🏭 tent ⛺ ferris wheel 🎡 fountain ⛲ bridge 🌉 watch ⌚ phone 📱 laptop 💻 keyboard ⌨ printer 🖨 camera 📷
television 📺 radio 📻 alarm clock ⏰ hourglass ⌛ battery 🔋 light bulb 💡 flashlight 🔦 candle 🕯 money bag 💰
gem 💎 hammer 🔨 wrench 🔧 screwdriver 🪛 saw 🪚 axe 🪓 gear ⚙ magnet 🧲 bomb 💣 sword 🗡 shield 🛡 syringe 💉 pill 💊
microscope 🔬 telescope 🔭 thermometer 🌡 broom 🧹 basket 🧺 soap 🧼 sponge 🧽 bucket 🪣 lock 🔒 door 🚪 chair 🪑
bed 🛏 couch 🛋 bathtub 🛁 toilet 🚽 gift 🎁 balloon 🎈 envelope ✉ package 📦 mailbox 📫 pencil ✏ paintbrush 🖌
scissors ✂ paper clip 📎 book 📖 newspaper 📰 calendar 📅 clipboard 📋 magnifying glass 🔍 bell 🔔 megaphone 📣
crown 👑 top hat 🎩 glasses 👓 necktie 👔 shirt 👕 jeans 👖 dress 👗 socks 🧦 gloves 🧤 scarf 🧣 handbag 👜
backpack 🎒 sneaker 👟 boot 👢 lipstick 💄 eye 👁 ear 👂 nose 👃 tooth 🦷 bone 🦴 brain 🧠 footprints 👣 ghost 👻
alien 👽 robot 🤖 skull 💀 clown 🤡 pumpkin 🎃 thumbs up 👍 thumbs down 👎
"""


def _read(table: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name: list[str] = []
    for word in table.split():
        if word.isascii():
            name.append(word)
        else:
            found[" ".join(name)] = word
            name = []
    return found


EMOJI: dict[str, str] = _read(_TABLE)
